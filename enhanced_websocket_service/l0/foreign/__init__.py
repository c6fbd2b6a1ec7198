"""Bars out of files that other systems exported: read, placed in time, checked, graded, stored.

``reading`` and ``times`` make a table of a file; ``evidence`` and ``conventions`` find out what each
stretch of its stamps means; ``checks`` and ``grading`` say what is wrong with a row and what a bar is
worth; ``judgement`` puts them together. All of those are pure but for the reading. ``job`` talks to the
database and writes the quarantine file, ``report`` shows what happened.
"""
