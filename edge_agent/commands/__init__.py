"""One module a command of the plain install; `edge_agent.cli` loads each only when it is called."""
