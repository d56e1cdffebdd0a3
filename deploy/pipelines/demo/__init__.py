"""The whole loop on one screen: photographs, training, int8, bundle, agent, MQTT, figures."""
