"""Reporting: leaderboards, their files and pictures, and the page, computed from finished runs."""
