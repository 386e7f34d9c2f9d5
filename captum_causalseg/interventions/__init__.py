"""How a score under an intervention is computed: evaluators for the engine."""
