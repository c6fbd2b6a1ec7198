/* global SwaggerUIBundle */
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // its default asks a server elsewhere
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
