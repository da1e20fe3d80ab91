"""What talks to a running server over HTTP, and nothing else: clients import no engine code."""
