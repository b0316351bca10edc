#include <stdio.h>

int main(void) {
    puts("hello from the build");
    return 0;
}
