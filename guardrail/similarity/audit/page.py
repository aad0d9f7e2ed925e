"""The audit as one self-contained HTML file: no network, no scripts; texts only where they were asked for."""

# ruff: noqa: E501 - an HTML template reads worse when its table rows are broken

from __future__ import annotations

import base64
from typing import Any

from guardrail.core import pages
from guardrail.similarity.audit.answers import answers

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ content_policy | safe }}">
<title>{{ a.customer.name }} – similarity audit</title>
<link rel="icon" href="data:,">
<style>
{{ style | safe }}
th, td { text-align: right; } td { white-space: nowrap; } td:not(.number) { min-width: 0; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: pre-wrap; min-width: 18rem; overflow-wrap: anywhere; }
tr.chosen td { font-weight: 600; background: #eaf1f8; }
.answers div:first-child { grid-column: auto; border-color: var(--line); }
.answers div:first-child dd { font-size: 1rem; font-weight: 400; }
.answers div:nth-child(2) { order: -1; grid-column: 1 / -1; border-color: var(--accent); }
.answers div:nth-child(2) dd { font-size: 1.2rem; line-height: 1.4; font-weight: 600; }
.note { color: var(--soft); font-size: 0.87rem; }
</style>
</head>
<body>
<header>
<p class="kicker">Similarity audit before fine-tuning</p>
<h1>{{ a.customer.name }}</h1>
<p class="caption">{{ a.customer.n }} rows{% if a.customer.n < a.customer.n_total %} (a random sample of {{ a.customer.n_total }}){% endif %}
against {{ a.variants | length }} alignment {{ "set" if a.variants | length == 1 else "sets" }}{% if a.references %} and
{{ a.references | length }} reference {{ "set" if a.references | length == 1 else "sets" }}{% endif %}.
Nothing was trained: this compares data.</p>
</header>
<main>
<dl id="answers" class="answers">
{% for one in answers(a) %}<div><dt>{{ one.question }}</dt><dd>{{ one.text }}</dd></div>
{% endfor %}</dl>
<h2>In full</h2>
<ul>
{% for sentence in a.summary %}<li>{{ sentence }}</li>
{% endfor %}</ul>
<h2>Alignment sets</h2>
<div class="scroll"><table>
<tr><th>set</th><th>similarity</th><th>95% interval</th><th>row percentile</th><th>lowest in resamples</th><th>rows</th><th>mean length</th><th>lists</th><th>Vendi score</th></tr>
{% for v in a.variants | sort(attribute="similarity") %}
<tr class="{{ 'chosen' if v.name == (a.verdict.predicted_best or a.verdict.least_similar) else '' }}"><td>{{ v.name }}</td>
<td>{{ "%.4f" | format(v.similarity) }}</td><td>{{ "%.4f to %.4f" | format(*v.interval) }}</td>
<td>{{ "%.0f" | format(v.references.row_percentile) if "row_percentile" in v.references else "–" }}</td>
<td>{{ "%.0f%%" | format(100 * v.lowest_in_resamples) if v.lowest_in_resamples is not none else "–" }}</td>
<td>{{ v.set.n }}</td>
<td>{{ "%.0f" | format(v.set.composition.length_chars.mean) if v.set.composition else "–" }}</td>
<td>{{ "%.0f%%" | format(100 * v.set.composition.list_fraction) if v.set.composition else "–" }}</td>
<td>{{ "%.1f" | format(v.set.diversity.vendi_score) }}</td></tr>
{% endfor %}
<tr><td>{{ a.customer.name }} (customer)</td><td></td><td></td><td></td><td></td><td>{{ a.customer.n }}</td>
<td>{{ "%.0f" | format(a.customer.composition.length_chars.mean) if a.customer.composition else "–" }}</td>
<td>{{ "%.0f%%" | format(100 * a.customer.composition.list_fraction) if a.customer.composition else "–" }}</td>
<td>{{ "%.1f" | format(a.customer.diversity.vendi_score) }}</td></tr>
</table></div>
<p class="note">Similarity: mean over a set's rows of the largest cosine to a customer row (the score by which subsets are
selected). Row percentile: where the customer's rows lie among the reference sets' rows by their own similarity to the set;
50 is like the references. Length is in characters of the answer; Vendi score is an effective number of different rows.</p>
{% for f in figures %}<figure><img src="data:image/png;base64,{{ f.data }}" alt="{{ f.caption }}"><figcaption>{{ f.caption }}</figcaption></figure>
{% endfor %}
{% for v in a.variants | sort(attribute="similarity") %}
<h2>What drives the similarity to {{ v.name }}</h2>
<p>{{ "%.1f" | format(v.drivers.effective_customer_rows) }} customer rows effectively carry it (inverse Simpson index over the
rows that the set's rows are nearest to).</p>
<div class="scroll"><table>
<tr><th>customer row</th><th>nearest to (share of set)</th><th>mean cosine</th><th>characters</th><th>list</th>{% if texts %}<th class="text">text</th>{% endif %}</tr>
{% for r in v.drivers.rows %}<tr><td>{{ r.id }}</td><td>{{ "%.1f%%" | format(100 * r.nearest_to_fraction) }}</td>
<td>{{ "%.3f" | format(r.mean_cosine) }}</td><td>{{ r.get("n_chars", "–") }}</td><td>{{ {True: "yes", False: "no"}.get(r.get("list"), "–") }}</td>
{% if texts %}<td class="text">{{ r.get("text", "") }}</td>{% endif %}</tr>{% endfor %}
</table></div>
<details><summary>Closest pairs</summary><div class="scroll"><table>
<tr><th>customer row</th><th>{{ v.name }} row</th><th>cosine</th><th class="text">category</th>{% if texts %}<th class="text">customer text</th><th class="text">alignment text</th>{% endif %}</tr>
{% for p in v.drivers.pairs %}<tr><td>{{ p.customer.id }}</td><td>{{ p.alignment.id }}</td><td>{{ "%.3f" | format(p.cosine) }}</td>
<td class="text">{{ p.alignment.get("category", "–") }}</td>{% if texts %}<td class="text">{{ p.customer.get("text", "") }}</td>
<td class="text">{{ p.alignment.get("text", "") }}</td>{% endif %}</tr>{% endfor %}
</table></div></details>
{% endfor %}
{% if not texts %}<p class="note">Texts are redacted; run again with <code>--show_text True</code> to include them.</p>{% endif %}
<h2>What this does and does not say</h2>
<ul>
<li>Ranks follow the finding of arXiv 2506.05346 (guardrails aligned on data similar to the downstream data last less long).
Whether that holds for this model is not measured here.</li>
<li>Similarity goes along with length, format and diversity. Where the sets differ in those columns, ranks cannot say which of
them matters.</li>
{% if a.forecast is defined %}<li>The forecast is a regression on {{ a.forecast.studies | map(attribute="n_arms") | sum }} arms
of {{ a.forecast.studies | length }} {{ "study" if a.forecast.studies | length == 1 else "studies" }}: associations in what was
measured there, with intervals for a task that it has not seen. Where it abstains there is no number to go by.</li>
{% else %}<li>There is no prediction: no forecast was fitted on measured studies.</li>{% endif %}
<li>Cosines of different models, layers or positions are not comparable with one another; the ranks in the stability
figure are.</li>
</ul>
<h2>Provenance</h2>
<p class="note">Model: {{ a.model or "stored representations" }}. Main view: {{ a.view }}. Views: {{ a.views | join(", ") }}.
Seed {{ a.run.seed }}; {{ a.run.bootstrap_draws }} resamples; data hashes in audit.json; commit {{ a.run.git.commit or "unknown" }};
{{ a.run.time_utc }}.</p>
<pre>{{ command }}</pre>
</main>
</body>
</html>
"""


def render_page(audit: dict[str, Any], figures: list[tuple[str, bytes]], command: str, texts: bool) -> str:
    """The page for ``audit`` (as in audit.json); everything is escaped, figures are embedded."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    embedded = [{"caption": caption, "data": base64.b64encode(png).decode("ascii")} for caption, png in figures]
    return environment.from_string(PAGE).render(
        a=audit,
        answers=answers,
        figures=embedded,
        command=command,
        texts=texts,
        style=pages.style(),
        content_policy=pages.POLICY,
    )
