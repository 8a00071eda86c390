"""The query by which the server learns a device's name: its type and its records."""

ACTION = "split_device"
"""Name under which a `ClientApp` registers the query."""

QUERY_TYPE = f"query.{ACTION}"
"""Type of the query's messages."""

NAME_KEY = "device-name"
"""Key of the reply's record with the name, of its one field, and in a node config."""

NODE_CONFIG_KEY = "node-config"
"""Key of the reply's record with the node config."""
