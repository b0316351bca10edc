#!/usr/bin/env bash
# k8s-build.sh: builds the server programs of Kubernetes 1.20 from Debian's source package into
# $NOXRUNNER_ENGINES/k8s-bin. Does nothing if they are there. Takes 5 to 15 minutes and 3 GB of disk on two cores.
# JOBS is the number of jobs that run at the same time, and defaults to 2.
. "$(dirname "$(readlink -f "$0")")/env.sh"

programs=(kube-apiserver kube-controller-manager kube-scheduler kubelet)
bin=$engines/k8s-bin
missing=()
for program in "${programs[@]}"; do
  [ -x "$bin/$program" ] || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] && exit
"$scripts/fetch.sh" k8s k8s-source

export GOROOT=$engines/go/usr/lib/go-1.19 GOPATH=$engines/gopath GOCACHE=$engines/gocache
export GO111MODULE=off CGO_ENABLED=0 GOMAXPROCS=${JOBS:-2} PATH=$engines/go/usr/lib/go-1.19/bin:$PATH
mkdir -p "$bin"
cd "$GOPATH/src/k8s.io/kubernetes"

# The source package lacks one generated file: the definitions of OpenAPI.
generated=pkg/generated/openapi/zz_generated.openapi.go
if [ ! -e "$generated" ]; then
  go build -p "${JOBS:-2}" -o "$engines/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
  packages=$(grep -rl --include=*.go '+k8s:openapi-gen=' pkg cmd plugin staging/src/k8s.io |
    grep -v -E '_test.go|/code-generator/|/sample-apiserver/|zz_generated' | xargs -n1 dirname | sort -u |
    sed 's,^staging/src/,vendor/,; s,^,k8s.io/kubernetes/,' | paste -sd,)
  "$engines/openapi-gen" -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r /dev/null
fi

version=v1.20.2 flags='-s -w'
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  name=k8s.io/kubernetes/vendor/$package
  flags+=" -X $name.gitVersion=$version -X $name.gitMajor=1 -X $name.gitMinor=20"
done
for program in "${missing[@]}"; do
  go build -p "${JOBS:-2}" -ldflags "$flags" -o "$bin/$program.new" "k8s.io/kubernetes/cmd/$program"
  mv "$bin/$program.new" "$bin/$program"
  echo "built $program" >&2
done
# The source and the cache of the compiler are not needed any more.
chmod -R u+w "$GOPATH"
rm -rf "$GOPATH" "$GOCACHE" "$engines/openapi-gen"
