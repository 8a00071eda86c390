"""The query by which the server learns a device's name: its type and its records."""

ACTION = "split_device"

QUERY_TYPE = f"query.{ACTION}"

NAME_KEY = "device-name"

NODE_CONFIG_KEY = "node-config"
