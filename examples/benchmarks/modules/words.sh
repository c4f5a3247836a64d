#!/bin/sh
# Counts the words of a made-up text of 2,000 lines.
awk 'BEGIN { for (i = 0; i < 2000; i++) print "the quick brown fox", i % 97, "jumps over", i % 13, "lazy dogs" }' |
    awk '{ for (i = 1; i <= NF; i++) count[$i]++ } END { for (word in count) n++; print n }'
