"""A forecast of durability before any training, fitted on studies that were run, with error bars; or none.

Order: ``observations`` (what studies measured, what an audit knows) -> ``model`` (fit, validate, predict, abstain) ->
``file`` (forecast.json) -> ``words`` -> ``command`` (`guardrail forecast fit | predict`). How far to trust it:
docs/forecast.md.
"""
