"""Getting one request to one worker and its answer back: admission, routing, the hot path."""
