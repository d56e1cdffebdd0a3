"""`edgeloop review`: a web page to label captured frames, the most valuable first."""
