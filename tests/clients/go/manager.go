package main

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
)

const (
	finalizer = "example.org/clients"
	// Who made the Secret, and who let the ConfigMap go.
	madeBy = "example.org/made-by"
)

// keeper gives each ConfigMap of the suite a Secret of the same name and data, and takes part in its end.
type keeper struct {
	client.Client
	name string
}

// manage says `leading` on stdout once it leads; what it did is in the objects.
func manage(config *rest.Config, name string) error {
	ctrl.SetLogger(zap.New(zap.WriteTo(os.Stderr)))
	manager, err := ctrl.NewManager(config, ctrl.Options{
		LeaderElection:                true,
		LeaderElectionID:              "clients.example.org",
		LeaderElectionNamespace:       namespace,
		LeaderElectionReleaseOnCancel: true,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	ours := predicate.NewPredicateFuncs(func(object client.Object) bool { return object.GetLabels()[suite] == "go" })
	err = ctrl.NewControllerManagedBy(manager).
		For(&corev1.ConfigMap{}, builder.WithPredicates(ours)).
		Owns(&corev1.Secret{}).
		Complete(&keeper{manager.GetClient(), name})
	if err != nil {
		return err
	}
	ctx := ctrl.SetupSignalHandler()
	go func() {
		select {
		case <-manager.Elected():
			fmt.Println("leading")
		case <-ctx.Done():
		}
	}()
	return manager.Start(ctx)
}

func (k *keeper) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var given corev1.ConfigMap
	if err := k.Get(ctx, request.NamespacedName, &given); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !given.DeletionTimestamp.IsZero() {
		if controllerutil.RemoveFinalizer(&given, finalizer) {
			return ctrl.Result{}, k.Update(ctx, &given)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&given, finalizer) {
		return ctrl.Result{}, k.Update(ctx, &given)
	}
	made := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: given.Name, Namespace: given.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, k.Client, &made, func() error {
		made.StringData = given.Data
		metav1.SetMetaDataAnnotation(&made.ObjectMeta, madeBy, k.name)
		return controllerutil.SetControllerReference(&given, &made, k.Scheme())
	})
	return ctrl.Result{}, err
}
