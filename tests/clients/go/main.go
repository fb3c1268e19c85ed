// What Go programs do with the Kubernetes API, against the cluster that KUBECONFIG names.
//
//	clients typed         client-go: typed, dynamic and metadata clients, informers; ends with 0 when all is well
//	clients manager NAME  a controller-runtime manager that stands for election; runs until it is ended
//
// Types are sent and read as protobuf, and informers begin with a WatchList: both are client-go's own choice.
package main

import (
	"fmt"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	namespace = "default"
	// The label of what the manager looks after.
	suite = "suite"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	// Both are about how fast one may ask, which is not what is tested.
	config.QPS, config.Burst = -1, -1
	switch {
	case len(arguments) == 1 && arguments[0] == "typed":
		return typed(rest.CopyConfig(config))
	case len(arguments) == 2 && arguments[0] == "manager":
		return manage(config, arguments[1])
	}
	return fmt.Errorf("usage: clients typed | clients manager NAME")
}
