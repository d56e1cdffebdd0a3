"""Commands of the plain install, one module each; `edge_agent.cli` imports a module only when its command is called."""
