package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/client-go/util/retry"
)

// Far longer than anything takes.
const limit = time.Minute

type clients struct {
	*kubernetes.Clientset
	dynamic  dynamic.Interface
	metadata metadata.Interface
	name     string
}

func typed(config *rest.Config) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*limit)
	defer cancel()
	// The typed client must not fall back to JSON: what it says in protobuf is to be understood.
	binary := rest.CopyConfig(config)
	binary.ContentType = "application/vnd.kubernetes.protobuf"
	set, err := kubernetes.NewForConfig(binary)
	if err != nil {
		return err
	}
	untyped, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	partial, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	var failed error
	for _, one := range []struct {
		name string
		run  func(context.Context, clients) error
	}{
		{"objects", objects},
		{"lists", lists},
		{"watch", watches},
		{"informers", informs},
		{"deployment", deployment},
		{"untyped", untypedObjects},
		{"discovery", discovers},
	} {
		if err := one.run(ctx, clients{set, untyped, partial, "go-" + rand.String(8)}); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", one.name, err))
			continue
		}
		fmt.Println("ok", one.name)
	}
	return failed
}

func same(what string, got, want any) error {
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%s: %v instead of %v", what, got, want)
	}
	return nil
}

func refused(what string, err error, is func(error) bool) error {
	if !is(err) {
		return fmt.Errorf("%s: refused with %v", what, err)
	}
	return nil
}

func (c clients) configMap(data string) *corev1.ConfigMap {
	labels := map[string]string{"one": c.name}
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: c.name, Labels: labels},
		Data:       map[string]string{"a": data},
		BinaryData: map[string][]byte{"b": {0, 255}},
	}
}

func objects(ctx context.Context, c clients) error {
	maps := c.CoreV1().ConfigMaps(namespace)
	made, err := maps.Create(ctx, c.configMap("1"), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, again := maps.Create(ctx, c.configMap("1"), metav1.CreateOptions{})
	read, err := maps.Get(ctx, c.name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	read.Data["a"] = "2"
	replaced, err := maps.Update(ctx, read, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	_, stale := maps.Update(ctx, made, metav1.UpdateOptions{})
	patched, err := maps.Patch(ctx, c.name, types.StrategicMergePatchType, []byte(`{"data":{"p":"3"}}`), metav1.PatchOptions{})
	if err != nil {
		return err
	}
	wanted := apply.ConfigMap(c.name, namespace).WithData(map[string]string{"q": "4"})
	applied, err := maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "go"})
	if err != nil {
		return err
	}
	wanted.WithData(map[string]string{"a": "5"})
	_, conflict := maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "go"})
	zero := int64(0)
	uid := types.UID("another")
	_, other := made, maps.Delete(ctx, c.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err := maps.Delete(ctx, c.name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		return err
	}
	_, gone := maps.Get(ctx, c.name, metav1.GetOptions{})
	return errors.Join(
		refused("created twice", again, apierrors.IsAlreadyExists),
		refused("replaced from an old version", stale, apierrors.IsConflict),
		refused("applied over another's field", conflict, apierrors.IsConflict),
		refused("deleted with another's uid", other, apierrors.IsConflict),
		refused("read after its end", gone, apierrors.IsNotFound),
		same("bytes", replaced.BinaryData, map[string][]byte{"b": {0, 255}}),
		same("replaced", replaced.Data, map[string]string{"a": "2"}),
		same("patched", patched.Data, map[string]string{"a": "2", "p": "3"}),
		same("applied", applied.Data, map[string]string{"a": "2", "p": "3", "q": "4"}),
	)
}

func lists(ctx context.Context, c clients) error {
	maps := c.CoreV1().ConfigMaps(namespace)
	for i := range 5 {
		one := c.configMap("1")
		one.Name = fmt.Sprintf("%s-%d", c.name, i)
		if _, err := maps.Create(ctx, one, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	chosen := metav1.ListOptions{LabelSelector: "one=" + c.name, Limit: 2}
	var names []string
	for {
		page, err := maps.List(ctx, chosen)
		if err != nil {
			return err
		}
		for _, one := range page.Items {
			names = append(names, one.Name[len(c.name)+1:])
		}
		if chosen.Continue = page.Continue; chosen.Continue == "" {
			break
		}
	}
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: chosen.LabelSelector}); err != nil {
		return err
	}
	left, err := maps.List(ctx, metav1.ListOptions{LabelSelector: chosen.LabelSelector})
	if err != nil {
		return err
	}
	return errors.Join(same("names", names, []string{"0", "1", "2", "3", "4"}), same("left", len(left.Items), 0))
}

// story changes an object in a way that everybody who watches can tell.
func (c clients) story(ctx context.Context) error {
	maps := c.CoreV1().ConfigMaps(namespace)
	if _, err := maps.Create(ctx, c.configMap("1"), metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := maps.Update(ctx, c.configMap("2"), metav1.UpdateOptions{}); err != nil {
		return err
	}
	return maps.Delete(ctx, c.name, metav1.DeleteOptions{})
}

var told = []string{"ADDED 1", "MODIFIED 2", "DELETED 2"}

func watches(ctx context.Context, c clients) error {
	maps := c.CoreV1().ConfigMaps(namespace)
	now, err := maps.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	ours := metav1.ListOptions{FieldSelector: "metadata.name=" + c.name}
	watching, err := watchtools.NewRetryWatcherWithContext(ctx, now.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = ours.FieldSelector
			return maps.Watch(ctx, options)
		},
	})
	if err != nil {
		return err
	}
	defer watching.Stop()
	if err := c.story(ctx); err != nil {
		return err
	}
	var events []string
	for len(events) < len(told) {
		select {
		case event := <-watching.ResultChan():
			found, ok := event.Object.(*corev1.ConfigMap)
			if !ok {
				return fmt.Errorf("%s %v", event.Type, event.Object)
			}
			events = append(events, fmt.Sprintf("%s %s", event.Type, found.Data["a"]))
		case <-ctx.Done():
			return fmt.Errorf("only %v", events)
		}
	}
	return same("events", events, told)
}

// One informer of whole objects and one of their metadata; both must hear the whole story.
func informs(ctx context.Context, c clients) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ours := func(options *metav1.ListOptions) { options.FieldSelector = "metadata.name=" + c.name }
	factory := informers.NewSharedInformerFactoryWithOptions(
		c.Clientset, 0, informers.WithNamespace(namespace), informers.WithTweakListOptions(ours))
	whole := factory.Core().V1().ConfigMaps()
	resource := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	partial := metadatainformer.NewFilteredMetadataInformer(c.metadata, resource, namespace, 0, nil, ours).Informer()
	data := func(object any) string {
		if found, ok := object.(*corev1.ConfigMap); ok {
			return " " + found.Data["a"]
		}
		return ""
	}
	heard := [2]chan string{make(chan string, 8), make(chan string, 8)}
	for i, informer := range []cache.SharedIndexInformer{whole.Informer(), partial} {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(object any) { heard[i] <- "ADDED" + data(object) },
			UpdateFunc: func(_, object any) { heard[i] <- "MODIFIED" + data(object) },
			DeleteFunc: func(object any) { heard[i] <- "DELETED" + data(object) },
		})
		if err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	go partial.Run(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), whole.Informer().HasSynced, partial.HasSynced) {
		return fmt.Errorf("the informers do not sync")
	}
	if err := c.story(ctx); err != nil {
		return err
	}
	for i, want := range [][]string{told, {"ADDED", "MODIFIED", "DELETED"}} {
		for _, next := range want {
			select {
			case got := <-heard[i]:
				if got != next {
					return fmt.Errorf("informer %d: %s instead of %s", i, got, next)
				}
			case <-ctx.Done():
				return fmt.Errorf("informer %d: never %s", i, next)
			}
		}
	}
	left, err := whole.Lister().ConfigMaps(namespace).List(labels.Everything())
	return errors.Join(err, same("left in the cache", len(left), 0))
}

func deployment(ctx context.Context, c clients) error {
	deployments := c.AppsV1().Deployments(namespace)
	chosen := map[string]string{"app": c.name}
	none := int32(0)
	made, err := deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: c.name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &none,
			Selector: &metav1.LabelSelector{MatchLabels: chosen},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: chosen},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image:1"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	var scale *autoscalingv1.Scale
	// Its controller writes it, too.
	err = retry.RetryOnConflict(retry.DefaultRetry, func() (err error) {
		if scale, err = deployments.GetScale(ctx, c.name, metav1.GetOptions{}); err == nil {
			_, err = deployments.UpdateScale(ctx, c.name, &autoscalingv1.Scale{ObjectMeta: scale.ObjectMeta}, metav1.UpdateOptions{})
		}
		return err
	})
	if err != nil {
		return err
	}
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, limit, true, func(ctx context.Context) (bool, error) {
		found, err := deployments.Get(ctx, c.name, metav1.GetOptions{})
		return err == nil && found.Status.ObservedGeneration >= made.Generation, err
	})
	if err != nil {
		return fmt.Errorf("its controller has not seen it: %w", err)
	}
	wrong := made.DeepCopy()
	wrong.ResourceVersion, wrong.Spec.Selector.MatchLabels = "", map[string]string{"app": "another"}
	_, invalid := deployments.Update(ctx, wrong, metav1.UpdateOptions{})
	foreground := metav1.DeletePropagationForeground
	return errors.Join(
		same("scale", scale.Status.Selector, "app="+c.name),
		refused("another selector", invalid, apierrors.IsInvalid),
		deployments.Delete(ctx, c.name, metav1.DeleteOptions{PropagationPolicy: &foreground}),
	)
}

func untypedObjects(ctx context.Context, c clients) error {
	functions := c.dynamic.Resource(schema.GroupVersionResource{Group: "dhow.dev", Version: "v1alpha1", Resource: "functions"})
	source := map[string]any{"inline": map[string]any{"files": map[string]any{"main.py": "def handle(request):\n    return 'ok'\n"}}}
	function := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "dhow.dev/v1alpha1",
		"kind":       "Function",
		"metadata":   map[string]any{"name": c.name},
		"spec":       map[string]any{"source": source},
	}}
	if _, err := functions.Namespace(namespace).Create(ctx, function, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := unstructured.SetNestedField(function.Object, "5m", "spec", "timeoutSeconds"); err != nil {
		return err
	}
	_, wrong := functions.Namespace(namespace).Apply(ctx, c.name, function, metav1.ApplyOptions{FieldManager: "go"})
	if err := unstructured.SetNestedField(function.Object, int64(7), "spec", "timeoutSeconds"); err != nil {
		return err
	}
	applied, err := functions.Namespace(namespace).Apply(ctx, c.name, function, metav1.ApplyOptions{FieldManager: "go"})
	if err != nil {
		return err
	}
	seconds, _, err := unstructured.NestedInt64(applied.Object, "spec", "timeoutSeconds")
	return errors.Join(
		err,
		same("timeout", seconds, int64(7)),
		refused("a number that is none", wrong, func(err error) bool { return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) }),
		functions.Namespace(namespace).Delete(ctx, c.name, metav1.DeleteOptions{}),
	)
}

func discovers(_ context.Context, c clients) error {
	_, resources, err := c.Discovery().ServerGroupsAndResources()
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, list := range resources {
		for _, resource := range list.APIResources {
			found[list.GroupVersion+" "+resource.Name] = true
		}
	}
	for _, want := range []string{"v1 pods/log", "apps/v1 deployments/scale", "dhow.dev/v1alpha1 functions", "coordination.k8s.io/v1 leases"} {
		if !found[want] {
			return fmt.Errorf("no %s", want)
		}
	}
	_, err = c.Discovery().OpenAPIV3().Paths()
	return err
}
