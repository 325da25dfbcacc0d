"""Every setting of an experiment, declared once: a field with its type, range and default, and a `Setting` beside them.

Free of torch. `experiments/config.py` joins the fields to `Config`; options, files, schemas and lists use them.
"""
