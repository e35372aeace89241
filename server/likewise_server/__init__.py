"""The likewise server: frozen backbones, a store and light heads behind gRPC."""
