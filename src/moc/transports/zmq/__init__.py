"""ZeroMQ: messages to a ROUTER socket, answered through the services; events from a PUB socket."""
