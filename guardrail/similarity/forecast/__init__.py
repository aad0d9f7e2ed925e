"""A forecast of durability before any training, fitted on studies that were run, with error bars; or none.

Order: ``observations`` (what studies measured, what an audit knows) -> ``model`` (fit, validate, predict, abstain) ->
``file`` (forecast.json) -> ``command`` (`guardrail forecast fit | predict`). docs/forecast.md says how far to trust it.
"""
