"""Why there are sinks: the survey's five explanations, each put to a model as an experiment."""
