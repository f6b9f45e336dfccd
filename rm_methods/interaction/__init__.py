"""Attention of students and joint teachers: token alignment, maps, and alignment objectives."""
