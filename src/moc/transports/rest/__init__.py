"""REST: the OpenAI API, the Open Inference Protocol and the management API on one port."""
