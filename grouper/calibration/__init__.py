"""Text, and what it tells of a layer's inputs."""
