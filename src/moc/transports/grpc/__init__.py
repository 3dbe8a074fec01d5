"""gRPC: the Open Inference Protocol, the management API, health and reflection."""
