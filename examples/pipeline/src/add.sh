# app A B prints the sum of two numbers.
add() {
    echo $(($1 + $2))
}
