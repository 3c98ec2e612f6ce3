"""Campaigns: many networks, jobs and images, cut into cells that Dask runs on one machine or many.

`fperr campaign run|status|resume|collect spec.toml` are the doors. Dask is loaded when a campaign
runs, and by nothing else of fperr.
"""
