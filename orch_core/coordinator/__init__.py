"""A process that holds a replica of the document; one of them leads."""
