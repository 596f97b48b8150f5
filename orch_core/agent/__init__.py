"""The process on each host that starts, watches and restarts workers and coordinators."""
