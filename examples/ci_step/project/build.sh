set -e
mkdir -p dist
echo "compiling"
cc -Wall -O2 -o dist/hello src/main.c
echo "testing"
test "$(./dist/hello)" = "hello from the build"
echo "built $(wc -c <dist/hello) bytes" >dist/report.txt
