"""TFLite files: their graph, their metadata, and which operations XNNPACK accelerates."""
