#!/bin/sh
# Sorts 20,000 numbers.
awk 'BEGIN { seed = 7; for (i = 0; i < 20000; i++) { seed = (seed * 16807) % 2147483647; print seed } }' | sort -n | tail -n 1
