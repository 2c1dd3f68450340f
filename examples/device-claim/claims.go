package main

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/sandgate/sandgate/plugin"
)

// featureClaim is what a driver has to have.
const featureClaim = "device-claim"

// Where in the pod the claim is referred to, besides the feature's own point.
var points = []string{"PodTemplate.template.spec.resourceClaims", "PodTemplate.template.spec.containers.agent.resources"}

// What the claim is called in the plan and in the pod, and the container that gets its devices.
const (
	claimName = "devices"
	agent     = "agent"
)

// config is the extension's block of the configuration.
type config struct {
	Class    string `json:"class" doc:"the DeviceClass of the devices"`
	Count    int    `json:"count" default:"1" min:"1" max:"32" doc:"how many, of a sandbox that does not say"`
	Most     int    `json:"most" config:"optional" min:"1" max:"32" doc:"how many a sandbox may ask for; absent: count"`
	Selector string `json:"selector" config:"optional" doc:"a CEL expression that a device has to fit"`
}

// wish is what a sandbox may say of it: driver_config.extensions.device-claim.
type wish struct {
	Count int `json:"count"`
}

// claims is the extension.
type claims struct {
	mu     sync.Mutex
	config config
}

var _ interface {
	plugin.Configurer
	plugin.Validator
	plugin.Planner
} = (*claims)(nil)

// Info implements plugin.Extension.
func (x *claims) Info() plugin.Info {
	return plugin.Info{Name: "device-claim", Version: "1.0.0", Requires: []string{featureClaim}, Points: points, Config: &config{}}
}

// Configure implements plugin.Configurer.
func (x *claims) Configure(_ context.Context, c *plugin.Config) error {
	cfg := *c.Value.(*config)
	if cfg.Most == 0 {
		cfg.Most = cfg.Count
	}
	wrong := validation.IsDNS1123Subdomain(cfg.Class)
	if len(wrong) > 0 {
		c.Invalid("class", fmt.Sprintf("%q is no name of a DeviceClass", cfg.Class), wrong[0])
	}
	if cfg.Most < cfg.Count {
		c.Invalid("most", fmt.Sprintf("is %d, less than the %d that a sandbox gets without asking", cfg.Most, cfg.Count), "")
	}
	if len(wrong) == 0 && cfg.Most >= cfg.Count {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.config = cfg
	}
	return nil
}

// wanted is how many devices a sandbox gets, or why it gets none.
func (x *claims) wanted(r *plugin.Request) (cfg config, why string) {
	x.mu.Lock()
	cfg = x.config
	x.mu.Unlock()
	var w wish
	if there, err := r.Config(&w); err != nil || there && w.Count == 0 {
		return cfg, `write {"count": N}`
	}
	if w.Count < 0 || w.Count > cfg.Most {
		return cfg, fmt.Sprintf("%d devices are asked for; a sandbox may have from 1 to %d", w.Count, cfg.Most)
	}
	if w.Count > 0 {
		cfg.Count = w.Count
	}
	return cfg, ""
}

// ValidateRequest implements plugin.Validator.
func (x *claims) ValidateRequest(_ context.Context, r *plugin.Request, v *plugin.Verdict) error {
	if _, why := x.wanted(r); why != "" {
		v.DenyField("driver_config.extensions.device-claim", why, "")
	}
	return nil
}

// PreparePlan implements plugin.Planner: the claim, and the pod that refers to it. Both name it as the plan does; the
// driver knows its real name.
func (x *claims) PreparePlan(_ context.Context, r *plugin.Request, p *plugin.Plan) error {
	cfg, why := x.wanted(r)
	if why != "" {
		p.DenyField("driver_config.extensions.device-claim", why, "")
		return nil
	}
	exactly := &resourcev1.ExactDeviceRequest{DeviceClassName: cfg.Class, AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: int64(cfg.Count)}
	if cfg.Selector != "" {
		exactly.Selectors = []resourcev1.DeviceSelector{{CEL: &resourcev1.CELDeviceSelector{Expression: cfg.Selector}}}
	}
	err := p.Contribute("ResourceClaim", claimName, resourcev1.ResourceClaim{Spec: resourcev1.ResourceClaimSpec{
		Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{Name: claimName, Exactly: exactly}}}}})
	if err != nil {
		return err
	}
	name := claimName
	return p.Contribute("PodTemplate", "main", corev1.PodTemplate{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		ResourceClaims: []corev1.PodResourceClaim{{Name: claimName, ResourceClaimName: &name}},
		Containers:     []corev1.Container{{Name: agent, Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: claimName}}}}}}}})
}
