"""Invented subjects: parametric chairs and tables, puppets, people, and how they move."""
