"""Equations of the claims: a line of LaTeX each, and after % what is to be said of it."""

SAMPLING = r"""
\max\, \log\, p(x|z = f(x)) % autoencoder: nothing determines where the codes f(x) lie
\max\, \mathbb{E}_q[\log\, p(x|z)] - \mathrm{KL}(q(z|x) \,\|\, p(z)) % VAE, p(z) = N(0, I): each q(z|x) is drawn towards N(0, I)
z = a z_1 + b z_2 + c z_3, \quad a + b + c = 1 % a mixture of three images, by their codes
"""
GAP = r"""
\log\, p(x) = \int q(z|x)\, \log\, p(x)\, dz % for any q, as q(z|x) integrates to 1
= \mathbb{E}_q[\log\, \frac{p(x, z)}{p(z|x)}] % Bayes' rule: p(z|x) = p(x, z) / p(x)
= \mathbb{E}_q[\log\, \frac{p(x, z)}{q(z|x)}] + \mathbb{E}_q[\log\, \frac{q(z|x)}{p(z|x)}] % multiplied and divided by q(z|x)
= \mathrm{ELBO}(x) + \mathrm{KL}(q(z|x) \,\|\, p(z|x)) % by their definitions; a KL is never negative
\log\, p(x) = \lim_{k \to \infty} \mathbb{E}[\log\, \frac{1}{k} \sum_{i=1}^{k} \frac{p(x, z_i)}{r(z_i)}] % importance sampling: zᵢ drawn from any r(z) > 0; with q for r, the bound IWAE-k
\mathrm{gap} = \log\, p(x) - \mathrm{ELBO}(q^*) % approximation: q* is the best diagonal Gaussian of the image
+\, \mathrm{ELBO}(q^*) - \mathrm{ELBO}(q) % amortisation: the encoder's q is not q*
"""
TERMS = r"""
\mathrm{ELBO}(x) = \mathbb{E}_q[\log\, p(x|z)] - \mathrm{KL}(q(z|x) \,\|\, p(z)) % the reconstruction, whose negative is the distortion, and the rate
= \mathbb{E}_q[\log\, p(x, z) - \log\, q(z|x)] % the same from the densities, as p(x, z) = p(x|z) p(z)
"""
ESTIMATORS = r"""
\nabla\, \mathbb{E}_{\varepsilon}[f(\mu + \sigma \varepsilon)] = \mathbb{E}_{\varepsilon}[\nabla f(\mu + \sigma \varepsilon)] % pathwise: z = μ + σ ε, the noise outside
\nabla\, \mathbb{E}_q[f(z)] = \mathbb{E}_q[f(z)\, \nabla \log\, q(z)]
+\, \mathbb{E}_q[\nabla f(z)] % score function
f = \log\, \frac{1}{K} \sum_{k=1}^{K} \frac{p(x, z_k)}{q(z_k|x)} % the bound IWAE-K; or the mean of the K logarithms: the ELBO
"""
DIVERGENCE = r"""
\mathrm{KL}(q \,\|\, p) = \mathbb{E}_q[\log\, q - \log\, p] \ge 0 % zero only where q = p
\mathrm{KL}(q \,\|\, p) \ne \mathrm{KL}(p \,\|\, q) % in general
"""
BATCH_SIZE = r"""
g_B = \frac{1}{B} \sum_{i=1}^{B} \nabla\, \mathrm{ELBO}(x_i) % of B images drawn at random, one z for each
\mathrm{Var}[g_B] = \frac{\mathrm{Var}[g_1]}{B}
"""
LOG_VARIANCE = r"""
z = \mu + \exp(\frac{1}{2} \log\, \sigma^2)\, \varepsilon % the encoder emits μ and log σ²
\mathrm{KL} = \frac{1}{2} \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log\, \sigma_j^2) % to N(0, I)
"""
SQUARED_ERROR = r"""
-\log\, \mathcal{N}(x; \mu, \sigma^2 I) = \frac{D\, \mathrm{MSE}}{2 \sigma^2} + D \log\, \sigma
+\, \frac{D}{2} \log\, 2\pi % of D pixel values
\frac{d}{d\sigma} = 0 \;\Leftrightarrow\; \sigma^2 = \mathrm{MSE}
\mathrm{MSE} = \frac{1}{D}\, \mathbb{E}_q | x - \mu(z) |^2
"""
LATENT_DIFFUSION = r"""
x\,[C, H, W] \;\to\; z\,[c, \frac{H}{f}, \frac{W}{f}]
f = 2^{n-1} % for n channel counts
z' = \frac{z - \mathrm{mean}(z)}{\mathrm{std}(z)} % what a diffusion model is trained on
"""
