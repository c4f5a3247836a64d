# Both numbers are needed.
main() {
    add "$1" "$2"
}
