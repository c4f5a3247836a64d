#!/bin/sh
# Makes three files of sales, 120,000 rows each, with the same figures on every machine.
for month in january february march; do
    awk -v month="$month" 'BEGIN {
        srand(length(month))
        seed = length(month) * 7919
        print "day,shop,amount"
        for (row = 1; row <= 120000; row++) {
            seed = (seed * 16807) % 2147483647
            print 1 + seed % 28 "," "shop" 1 + int(seed / 28) % 40 "," int(seed / 1000) % 500
        }
    }' >"$month.csv"
done
wc -l january.csv february.csv march.csv
