"""The Open Inference Protocol, whatever carries it: its messages as JSON and gRPC have them, its rules."""
