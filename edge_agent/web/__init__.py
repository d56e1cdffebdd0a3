"""What all web pages and services of edgeloop share: the HTTP server, its limits, and who may use it.

Needs the extra ``review`` (starlette and uvicorn), which is imported only on use.
"""
