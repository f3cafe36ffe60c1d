"""The paper and the regimes' reports, from saved results alone: ``python -m analysis.paper``.

``studies`` finds what is saved, a module per section computes what it says (``SECTIONS`` in ``build``), ``tex`` and
``markdown`` write it down. Nothing is estimated here: the statistics are those of ``analysis``.
"""
