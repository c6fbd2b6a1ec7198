"""Whether a stream that brings nothing new is dead, or its market quiet. Pure.

``detector`` decides. Its parts are ``link``, ``silence``, ``samples`` and ``stamp_age``. ``baseline`` and
``inter_arrival`` know what is usual, ``rest_agreement`` compares prices, ``rest_witness`` judges REST itself,
``status`` is what is shown. The rule and its reasons: ``docs/explanation/liveness.md``.
"""
