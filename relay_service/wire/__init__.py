"""The data plane: gRPC over sans-I/O HTTP/2, with a thin asyncio shell for both sides."""
