"""The gRPC edge: what turns messages of legato.v1 into packets and predictions into messages; imports no torch."""
