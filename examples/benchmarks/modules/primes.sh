#!/bin/sh
# Finds the primes below 30,000.
awk 'BEGIN {
    for (n = 2; n < 30000; n++) {
        if (crossed[n]) continue
        found++
        for (m = n * n; m < 30000; m += n) crossed[m] = 1
    }
    print found
}'
