// The node agent of istio-cni as it is, without what installs its plug-in on a node: it watches pods through the API server, makes
// its rules in them with iptables, and tells a proxy of them over ZDS.
//
// Arguments: a kubeconfig, the socket for ZDS, the socket that its CNI plug-in would call, and where its container would have the node's
// files: proc/1/ns/net, and the paths of network namespaces.
package main

import (
	"context"
	"log"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"istio.io/istio/cni/pkg/constants"
	"istio.io/istio/cni/pkg/nodeagent"
	"istio.io/istio/cni/pkg/util"
	istiolog "istio.io/istio/pkg/log"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	options := istiolog.DefaultOptions()
	options.SetDefaultOutputLevel("all", istiolog.DebugLevel)
	if err := istiolog.Configure(options); err != nil {
		log.Fatal(err)
	}
	// As its chart has them.
	mode := "istio.io/dataplane-mode"
	ambient := metav1.LabelSelector{MatchLabels: map[string]string{mode: "ambient"}}
	willing := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: mode, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"none"}},
	}}
	selectors, err := util.NewCompiledEnablementSelectors([]util.EnablementSelector{
		{PodSelector: ambient}, {PodSelector: willing, NamespaceSelector: ambient},
	})
	if err != nil {
		log.Fatal(err)
	}
	constants.HostMountsPath = os.Args[4]
	ready := &atomic.Value{}
	agent, err := nodeagent.NewServer(ctx, ready, os.Args[3], nodeagent.AmbientArgs{
		SystemNamespace:    "istio-system",
		KubeConfig:         os.Args[1],
		ServerSocket:       os.Args[2],
		EnablementSelector: selectors,
		DNSCapture:         os.Getenv("DNS_CAPTURE") == "true",
		EnableIPv6:         true,
	})
	if err != nil {
		log.Fatal(err)
	}
	agent.Start()
	<-ctx.Done()
	agent.Stop(false)
}
