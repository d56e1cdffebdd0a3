"""The demo: runs the whole pipeline from photographs to labels over MQTT."""
