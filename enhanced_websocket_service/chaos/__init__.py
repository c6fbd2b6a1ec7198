"""The service under a seeded storm of faults, and a ledger of what must hold whatever dies.

``schedule`` and the judges (``journal_account``, ``following``, ``comparison``, ``honesty``, ``ledger``)
decide and do no I/O; ``world``, ``parts``, ``lies``, ``processes``, ``client``, ``watching`` and ``evidence``
do it; ``storm`` runs the whole.
"""
