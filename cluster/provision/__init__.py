"""Files that bring a cluster up for a sweep: Ray's cluster launcher for clouds, KubeRay for Kubernetes."""
