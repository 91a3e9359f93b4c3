"""``hsta serve``: predictions in a browser. Whoever uploads is not trusted.

The server (`server`) answers HTTP and never opens an upload; processes of its own (`workers`, `work`) do, which end
when they take too long and have only so much memory. Nothing is kept: a page that asks again sends its film again.
"""
